"""Random faults on every role of a fleet under load, and an account at the end.

`python -m tests.chaos.mixed --help`; `make chaos` runs it. One noun a file:

    settings      what the fleet of a run is configured with
    starter       forks the processes, whose clocks can be set (clock.c)
    processes     the roles, and the supervisor that starts what has ended
    provider      the simulated provider, which writes down every call
    workload      the kinds of requests
    producer      a process that sends them and waits for their results
    network       a relay between some processes and Redis
    faults        what is done to the processes, to Redis and to the network
    account       compares what was promised, what happened, and what was billed
    redelivery    how long the requests of killed processes waited
    serving       when workers could serve
    periods       periods of time
    fleet, stock  the sides: the fleet, and stock Celery under the same faults
    report        the tables
"""
