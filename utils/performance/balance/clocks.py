"""The same policy object and the same tasks on both clocks.

The virtual clock believes that a task takes what it should. Real cores are shared with the rest of
the machine. So the real run is compared twice: with what the tasks should have taken, and with a
third run, on the virtual clock again, of what each of them took: that leaves the scheduling alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from utils.core import machine, plots
from utils.core.experiment import Range, experiment
from utils.performance.balance.compare import Name, draw
from utils.performance.balance.outcome import Outcome
from utils.performance.balance.policies import make_policy
from utils.performance.balance.real import Vehicle, jobs, run
from utils.performance.balance.tasks import Shape, make_tasks
from utils.performance.balance.virtual import simulate
from utils.performance.work import Kind


@dataclass(frozen=True)
class Clocks:
    """`virtual`: tasks as planned. `real`: as they went. `replayed`: those on the virtual clock."""

    policy: str
    vehicle: Vehicle
    virtual: Outcome
    real: Outcome
    replayed: Outcome


@experiment
def two_clocks(
    policy: Name = "work stealing",
    shape: Shape = "rhythm",
    count: Annotated[int, Range(1, max(8, machine.cores()), label="workers")] = machine.cores(),
    vehicle: Vehicle = "threads",
    work: Kind = "compute",
    milliseconds: Annotated[float, Range(5, 50, label="ms a task (mean)")] = 10,
) -> Clocks:
    """32 tasks a worker, by the same policy on the virtual and on the real clock."""
    tasks = make_tasks(shape, 32 * count, milliseconds / 1e3)
    with jobs(vehicle, count, work) as job:
        real = run(make_policy(policy, count), tasks, job)
    return Clocks(
        policy, vehicle, simulate(make_policy(policy, count), tasks), real, replay(policy, real)
    )


def replay(policy: str, outcome: Outcome) -> Outcome:
    """What the virtual clock makes of the tasks if each takes what it took in `outcome`."""
    took = {
        span.args["task"]: span.seconds
        for span in outcome.trace.spans
        if span.category == "compute"
    }
    tasks = [replace(task, cost=took[task.number]) for task in outcome.tasks]
    return simulate(make_policy(policy, outcome.workers), tasks)


def plot(result: Clocks) -> plots.Picture:
    """Both timelines on one scale; the dashed line is the lower bound of the planned tasks."""
    rows = result.real.workers
    fig, axes = plots.figure(9, 2.2 + 0.5 * rows, rows=2, sharex=True)
    until = 1.02 * max(result.virtual.makespan, result.real.makespan)
    for ax, name in zip(axes, ("virtual", "real"), strict=True):
        outcome = getattr(result, name)
        draw(ax, outcome, until)
        where = f", {result.vehicle}" if name == "real" else ""
        title = f"{name} clock{where}: {outcome.makespan:.3f} s, {outcome.excess:.2f} × the bound"
        ax.set_title(title, loc="left")
    axes[0].set_xlabel("")
    planned = result.real.makespan / result.virtual.makespan
    replayed = result.real.makespan / result.replayed.makespan
    axes[1].set_xlabel(
        f"seconds      (real ÷ virtual {planned:.2f}; tasks as long as they were: {replayed:.3f})",
        fontsize=9,
    )
    plots.legend(fig, ["compute"], {"compute": "a task"})
    return fig
