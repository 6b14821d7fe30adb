"""Plans before money is spent: budgets, memory, a step compiled for GPUs that are not there."""
