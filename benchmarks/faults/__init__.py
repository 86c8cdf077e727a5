"""A small run that is killed, stopped and damaged: `python -m benchmarks.faults [--kinds=kill]`.

Each trial is the whole job on a few digits, in processes as real as a pod's. It ends well if the
run that went through the fault has the same bits as one that nothing happened to: parameters,
averages, optimizers and heads of every training, every record, every row of the report.
"""
