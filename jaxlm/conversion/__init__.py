"""Turn Hugging Face directories into runs, and runs into Hugging Face directories."""
