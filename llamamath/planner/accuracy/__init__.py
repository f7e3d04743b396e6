"""Predicted against published memory: `llamamath accuracy` and docs/accuracy.md.

rows.py      one published run as its source states it            fields.py    its free text in our own words
software.py  which training code made it, and that code's habits  models.py    stand-ins for models with code of their own
caveats.py   what differs from what we describe, and which way    jobs.py      from a run to the Job that describes it
orders.py    in which order batches of varying length may come    compare.py   predictions beside figures, in numbers
report.py    the same as Markdown, headline.py its first table, markdown.py tables and numbers
document.py  the same as JSON                                     run.py       where the runs are, and what predicts them

Nothing here is used by planning: these modules only read what others measured.
"""
