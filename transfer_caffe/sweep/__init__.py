"""All networks of a recipe: planned, trained several at a time, watched, verified."""
