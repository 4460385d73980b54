"""Experts chosen for each token by its task's gate (MT-TaG, MT-Switch)."""
