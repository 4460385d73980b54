"""The second paper's study: task vectors, few-shot tuning, relative gain, report."""
