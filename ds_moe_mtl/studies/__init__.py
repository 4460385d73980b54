"""What is made of several runs: trials, fine-tuning, the papers' tables and comparison."""
