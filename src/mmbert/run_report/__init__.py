"""How a run went against its plan, from the run's own folder, at any time: `python -m mmbert.run_report RUN`.

Not to be taken for `mmbert.evaluation.report`, which compares what the finished phases' models score.
"""
