"""Which value neurons are the best k: enumerated, or bounded and certified."""
