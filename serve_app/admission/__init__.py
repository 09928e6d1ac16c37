"""Who may use a model now, who waits for it, and who is told at once when to come back.

tiers.py        the service tiers, best first
load.py         what a request takes of an engine
settings.py     what an operator may say about it
fair_queue.py   those of one tier who wait, in turns between callers
callers.py      what each caller has inside, and has to leave free
pace.py         how fast an engine writes, of late
forecast.py     when there will be room
inside.py       what is in one model's engine, how much more there may be, and when
admission.py    one model's door: `Admission.enter` is the way in
"""
