"""How long this package waits and how often it looks, in one place. All in seconds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Times:
    """The waits of a cluster and of what it is made of; tests hand in shorter ones.

    Parameters
    ----------
    poll_first_s, poll_pending_s, poll_quiet_s : float
        Between two listings: after something happened; at most while a session is pending; at most otherwise.
    missing_s : float
        For how long listings must miss a session before it counts as ended. One listing proves nothing: some have been
        seen to miss a session, and one that was just launched may not be shown yet.
    stop_s : float
        How long to wait for sessions to end.
    stop_again_s : float
        Between two requests to stop the same session.
    stopping_s : float
        After this long a session that is being stopped should have ended. Moving a worker's data away may take long.
    launch_s : float
        After this long a launch call is over, or its kernel is: one request a session, ten at a time, and a platform
        that may be slow.
    suspects_s : float
        How long to wait for a session to print something, where it may be one of ours.
    clocks_differ_s : float
        By how much the clocks of the platform and of this machine may differ.
    refused_s : float
        Between two launches that nobody asked for by hand, once the platform refused one.
    unseen_gone_s, unseen_pending_s : float
        How long a session that our listing cannot show may be without its worker, once that was connected and before.
        Dask itself notices after 30 s that a connection is cut, and a worker that notices ends.
    prune_s : float
        For how long an ending may be held up by the logs of clusters that ended before.
    beat_s, lease_s : float
        Between two heartbeats of the kernel that steers; how long others wait for one before they take over.
    unclear_s, back_s : float
        How long to wait for the platform, or for a worker to come back, to know how a worker died; and, when it is
        back, for the scheduler to say that it was restarted on purpose.
    steer_s : float
        Between two rounds of the supervisor.
    pending_s : float
        After this long the user is told why a session may still be pending.
    report_s : float
        Between two reports of a start.
    tick_s : float
        Between two looks at what a start waits for.
    head_start_s : float
        By how much the scheduler's launch goes ahead of the workers'.
    connect_s : float
        How long to try to connect to a scheduler.
    answer_s : float
        How long to wait for a scheduler's answer.
    restart_s : float
        How long a worker may take to restart.
    detach_s : float
        How long letting go of a cluster may take.
    shown_s, unseen_s : float
        Between two pieces of news of a scheduler while somebody looks, and otherwise.
    history_s : float
        How far back the graphs show.
    lost_s : float
        After this long without news the cluster is shown as lost.
    """

    poll_first_s: float = 0.2
    poll_pending_s: float = 1.0
    poll_quiet_s: float = 5.0
    missing_s: float = 5.0
    stop_s: float = 60.0
    stop_again_s: float = 5.0
    stopping_s: float = 600.0
    launch_s: float = 900.0
    suspects_s: float = 30.0
    clocks_differ_s: float = 120.0
    refused_s: float = 60.0
    unseen_gone_s: float = 120.0
    unseen_pending_s: float = 900.0
    prune_s: float = 1.0
    beat_s: float = 5.0
    lease_s: float = 20.0
    unclear_s: float = 10.0
    back_s: float = 2.0
    steer_s: float = 2.0
    pending_s: float = 60.0
    report_s: float = 0.5
    tick_s: float = 0.05
    head_start_s: float = 0.2
    connect_s: float = 15.0
    answer_s: float = 3.0
    restart_s: float = 60.0
    detach_s: float = 10.0
    shown_s: float = 1.0
    unseen_s: float = 5.0
    history_s: float = 300.0
    lost_s: float = 15.0


USUAL = Times()
