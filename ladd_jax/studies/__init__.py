"""Studies: tables of runs that share data, each compared with the others in one report.

To add one, write `NAME.json` here, or anywhere and give its path: see `table.Study`.
"""
