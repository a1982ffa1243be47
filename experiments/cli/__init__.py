"""What both command lines share: how a program ends, what a command takes and prints, the commands `run` and `report`.

The programs hand in what is theirs: their name, their experiments.
"""
