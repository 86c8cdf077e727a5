"""Studies: tables of runs that share data, and are compared in one report.

To add one, write `NAME.json` in this folder, or anywhere else and give its path; see
`table.read_study`.
"""
