"""Text of users, and the tasks that are made of it."""
