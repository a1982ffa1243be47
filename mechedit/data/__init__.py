"""What a fact is, and how it is read: records, schemas, prompts. Nothing here loads torch."""
