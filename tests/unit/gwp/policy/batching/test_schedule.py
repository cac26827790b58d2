"""The scheduler alone, under a virtual clock."""

import random

import pytest

from gwp.policy.batching.schedule import BUCKETS, Costs, Request, Schedule, bucket_of

STEPS = 10


def costs(prefix=0.3, step=0.1):
    """Seconds that grow less than in proportion, as batches do."""
    return Costs(
        {n: prefix * (0.5 + 0.5 * n) for n in BUCKETS}, {n: step * (0.8 + 0.2 * n) for n in BUCKETS}
    )


class Machine:
    """Runs a schedule as the engine does, in virtual time, and checks what must hold at every
    moment.
    """

    def __init__(self, schedule):
        self.schedule, self.now = schedule, 0.0
        self.rows: list[Request] = []
        self.ended: dict[int, str] = {}
        self.started: dict[int, float] = {}
        self.took: dict[int, float] = {}

    def end(self, request, how):
        assert request.id not in self.ended
        self.ended[request.id] = how
        if how == "done":
            self.took[request.id] = self.now - self.started[request.id]

    def follow(self, moves):
        for move in moves:
            self.rows[move.target] = self.rows[move.source]
        del self.rows[len(self.schedule.active) :]
        assert [r.id for r in self.rows] == [r.id for r in self.schedule.active]

    def tick(self, cancelled=()):
        schedule = self.schedule
        known = {r.id for r in schedule.active} | {r.id for _, _, r in schedule._line}
        expired, moves = schedule.sweep(self.now, set(cancelled) & known)
        for key in set(cancelled) & known:
            self.ended[key] = "cancelled"
        for request in expired:
            assert request.deadline <= self.now
            self.end(request, "expired")
        self.follow(moves)
        line = sorted(schedule._line)
        for group in schedule.admit():
            assert len(group) in BUCKETS
            assert len(group) <= schedule.group
            for request in group:
                # Nobody with an earlier deadline is left behind.
                assert request is line.pop(0)[2]
                assert request.deadline > self.now
                self.started[request.id] = self.now
            self.rows += group
            self.now += schedule.costs.of("prefix", len(group))
        assert [r.id for r in self.rows] == [r.id for r in schedule.active]
        assert len(self.rows) <= schedule.slots
        if schedule.active:
            self.now += schedule.costs.of("step", bucket_of(len(schedule.active)))
            done = schedule.stepped()
            for request in done:
                assert request.step == STEPS
                self.end(request, "done")
            self.follow(schedule.release(done))


@pytest.mark.parametrize("seed", range(5))
def test_a_thousand_random_arrivals_each_end_exactly_once(seed):
    rng = random.Random(seed)
    machine = Machine(
        Schedule(
            rng.choice([1, 3, 8, 16]),
            rng.choice([1, 2, 4]),
            STEPS,
            rng.choice([0.0, 0.3, 2.0]),
            costs(),
        )
    )
    arrivals, now = [], 0.0
    for i in range(1000):
        now += rng.expovariate(rng.choice([0.5, 2.0, 10.0]))
        arrivals.append((now, Request(i, now + rng.choice([float("inf"), rng.uniform(0.1, 20.0)]))))
    waiting, cancelled = list(arrivals), {i for i in range(1000) if rng.random() < 0.1}
    told: set[int] = set()
    while waiting or machine.schedule.waiting or machine.schedule.active:
        if waiting and not (machine.schedule.waiting or machine.schedule.active):
            machine.now = max(machine.now, waiting[0][0])
        while waiting and waiting[0][0] <= machine.now:
            _, request = waiting.pop(0)
            machine.schedule.add(request)
        now_cancelled = {
            i for i in cancelled - told if arrivals[i][0] <= machine.now and rng.random() < 0.3
        }
        told |= now_cancelled
        machine.tick(now_cancelled)
    assert machine.ended.keys() == set(range(1000))
    assert set(machine.ended.values()) <= {"done", "expired", "cancelled"}
    for i, how in machine.ended.items():
        assert how != "cancelled" or i in cancelled
        assert how != "expired" or arrivals[i][1].deadline < float("inf")


@pytest.mark.parametrize("max_delay", [0.0, 0.3, 1.0])
def test_an_active_request_is_delayed_no_more_than_promised(max_delay):
    schedule = Schedule(16, 4, STEPS, max_delay, costs())
    alone = schedule.costs.of("prefix", 1) + STEPS * schedule.costs.of("step", 1)
    machine = Machine(schedule)
    schedule.add(Request(0))
    machine.tick()
    for i in range(1, 40):
        schedule.add(Request(i))
        machine.tick()
    assert machine.ended[0] == "done"
    assert machine.took[0] <= (1 + max_delay) * alone + 1e-9
    while schedule.active or schedule.waiting:
        machine.tick()
    assert len(machine.ended) == 40


def test_those_who_wait_when_nobody_is_active_go_in_together():
    schedule = Schedule(16, 4, STEPS, 0.0, costs())
    for i in range(16):
        schedule.add(Request(i))
    groups = schedule.admit()
    assert [len(group) for group in groups] == [4, 4, 4, 4]
    assert bucket_of(len(schedule.active)) == 16


def test_a_crowd_behind_one_robot_soon_shares_a_batch():
    """One more can be borne at almost any moment, four cannot; let in one by one, they would
    never share a batch.
    """
    # Milliseconds of a small model on two cores.
    measured = Costs({1: 9.4, 2: 11.7, 4: 16.5}, {1: 3.8, 2: 4.8, 4: 6.8, 8: 10.0, 16: 17.0})
    machine = Machine(Schedule(16, 4, STEPS, 0.3, measured))
    machine.schedule.add(Request(0))
    machine.tick()
    for i in range(1, 16):
        machine.schedule.add(Request(i))
    while machine.schedule.active or machine.schedule.waiting:
        machine.tick()
    assert set(machine.ended.values()) == {"done"}
    # The first alone, then all others together.
    assert machine.now <= 9.4 + STEPS * 3.8 + (3 * 16.5 + 11.7 + 9.4) + STEPS * 17.0


def test_the_earliest_deadline_goes_first_and_without_one_the_earliest_comer():
    schedule = Schedule(1, 1, STEPS, 0.0, costs())
    requests = (Request(0), Request(1, 9.0), Request(2, 5.0), Request(3), Request(4, 99.0, due=7.0))
    for request in requests:
        schedule.add(request)
    order = []
    while schedule.waiting:
        (group,) = schedule.admit()
        order += [r.id for r in group]
        schedule.release(group)
    assert order == [2, 4, 1, 0, 3]
    # When it has nothing left to do is no deadline.
    assert schedule.sweep(8.0, set()) == ([], [])


def test_more_slots_than_the_largest_batch_are_refused():
    with pytest.raises(ValueError, match="between 1 and 32"):
        Schedule(33, 4, STEPS)


def test_batches_of_any_number_are_counted_as_they_are():
    counts = range(1, 33)
    assert [Schedule(32, 4, 10, exact=True).rows(n) for n in counts] == list(counts)
    assert [Schedule(32, 4, 10).rows(n) for n in counts] == [bucket_of(n) for n in counts]
