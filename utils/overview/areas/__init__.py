"""Five places where AI uses concurrency, each as a small real workload with a worker slider.

Training, vision, language, recommendation and speech: each module runs its work on one worker
and on several, checks that the outcome is the same, and holds the measured rate against
`min(workers, cores)` times one worker.
"""
