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
        latest = self.now + schedule._stay(1)
        expired, moves = schedule.sweep(self.now, set(cancelled) & known)
        for key in set(cancelled) & known:
            self.ended[key] = "cancelled"
        for request in expired:
            assert request.deadline <= (latest if request.step == 0 else self.now)
            self.end(request, "expired")
        self.follow(moves)
        line = [request for _, _, request in sorted(schedule._line)]
        latest = [self.now + schedule._stay(n) for n in range(1, schedule.slots + 1)]
        alone, begin = not schedule.active, self.now
        going = []
        for group in schedule.admit(self.now):
            assert len(group) in BUCKETS
            assert len(group) <= schedule.group
            for request in group:
                assert request.deadline > begin
                self.started[request.id] = self.now
            self.rows += group
            going += group
            self.now += schedule.costs.of("prefix", len(group))
        # Whoever is more urgent and is left behind could not have been done in time with them.
        left = [
            r for r in line if r not in going and going and line.index(r) < line.index(going[-1])
        ]
        assert all(r.deadline < latest[-1] for r in left)
        if len(going) > 1 or not alone:
            assert all(r.deadline >= latest[len(going) - 1] for r in going)
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
    groups = schedule.admit(0.0)
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
        (group,) = schedule.admit(0.0)
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


def answered_in_time(load, deadline, seed=0):
    """Of what the machine can do at most, the share that is done in time when `load` times as much
    is asked; and how long those took who were, from their arrival, in the worst case.
    """
    rng, schedule = random.Random(seed), Schedule(8, 4, STEPS, 0.3, costs())
    machine, arrivals, now = Machine(schedule), [], 0.0
    for i in range(2000):
        now += rng.expovariate(load / schedule.pace)
        arrivals.append(Request(i, now + deadline))
    waiting = list(arrivals)
    while waiting or schedule.waiting or schedule.active:
        if waiting and not (schedule.waiting or schedule.active):
            machine.now = max(machine.now, waiting[0].deadline - deadline)
        while waiting and waiting[0].deadline - deadline <= machine.now:
            schedule.add(waiting.pop(0))
        machine.tick()
    ends = {i: machine.started[i] + machine.took[i] for i in machine.took}
    in_time = [i for i, end in ends.items() if end <= arrivals[i].deadline]
    rate = len(in_time) / machine.now
    return rate * schedule.pace, max(ends[i] - arrivals[i].deadline + deadline for i in in_time)


@pytest.mark.parametrize("load", [2.0, 5.0, 20.0])
@pytest.mark.parametrize("deadline", [6.0, 8.0, 20.0])
def test_under_overload_as_much_is_done_in_time_as_can_be_done(load, deadline):
    # Without deadlines all rows are always taken; a full batch takes four.
    done, worst = answered_in_time(load, deadline)
    assert done > 0.85
    assert worst <= deadline


def test_a_deadline_that_a_full_batch_misses_makes_batches_smaller():
    # Half of the rows are in time, and do four fifths as much.
    done, _ = answered_in_time(5.0, deadline=4.0)
    assert done > 0.75


def test_a_machine_with_nothing_else_to_do_tries_what_it_believes_too_late():
    schedule = Schedule(8, 4, STEPS, 0.3, costs())
    for i, deadline in enumerate((1.0, 1.2, 1.1)):
        schedule.add(Request(i, deadline))
    expired, _ = schedule.sweep(0.0, set())
    assert sorted(request.id for request in expired) == [0, 2]
    ((tried,),) = schedule.admit(0.0)
    assert tried.id == 1
    schedule.add(Request(3, 1.3))
    expired, _ = schedule.sweep(0.0, set())
    assert [request.id for request in expired] == [3]
