"""The realtime lane's tasks: one for each kind of request, such as `realtime.complete`."""

from tasks.serving import add_tasks

add_tasks("realtime")
