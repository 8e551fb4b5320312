"""Scripts that run one tool in a process of its own, in the environment of that tool.

Each is self-contained and written for Python 3.10 on; `launch.py` starts them.
"""
