"""`python -m benchmarks.faults [--kinds=kill]`: small runs that are killed, stopped and damaged.

Each trial runs the whole job on a few digits, in processes of its own as on a pod, and disturbs it.
Most kinds pass if the disturbed run ends with the same bits as one that nothing happened to:
parameters, averages, optimizers and heads of every training, every record, every row of the report.
`trials.KINDS` has the right outcome of each kind. Rows go to `benchmarks/results/faults.json`;
trials that have one are not repeated.
"""
