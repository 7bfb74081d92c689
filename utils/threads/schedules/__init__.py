"""Schedule explorer: prove a small concurrent program right, or see exactly how it breaks.

    def program():                       # makes its state, starts threads, joins them, asserts
        ...
    report = schedules.check(program)    # every schedule with up to two preemptions
    schedules.plot(report)               # the failing schedule, line by line
    schedules.replay(program, report.failure.schedule)
    schedules.by_hand(program)           # be the scheduler

`execution` runs a program once under a scheduler it controls (`tasks`: its nouns, `crew`: its
threads); `accesses`, `resolve` and `races` tell where switching can matter; `standins` puts locks
and threads under control; `search` tries the schedules; `report`, `inspection` and `picture` show
what was found; `by_hand` and `board` let you choose.
"""

from utils.threads.schedules.board import by_hand
from utils.threads.schedules.execution import always
from utils.threads.schedules.picture import plot
from utils.threads.schedules.report import Found, Report
from utils.threads.schedules.search import check, replay

__all__ = ["Found", "Report", "always", "by_hand", "check", "plot", "replay"]
