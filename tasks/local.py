"""The local lane's tasks: one for each kind of request, such as `local.complete`."""

from tasks.serving import add_tasks

add_tasks("local")
