"""What is to be learned: rows of tasks, their groups and their metrics."""

from ds_moe_mtl.tasks.known import expand_tasks, get_task, known_tasks, task_groups
from ds_moe_mtl.tasks.spec import KINDS, TOKEN_KINDS, TaskSpec, is_small

__all__ = [
    "KINDS",
    "TOKEN_KINDS",
    "TaskSpec",
    "expand_tasks",
    "get_task",
    "is_small",
    "known_tasks",
    "task_groups",
]
