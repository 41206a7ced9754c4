"""What a benchmark prints beside its numbers, and a process of its own for every case, so that its peak memory is its own."""
import json
import platform
import subprocess
import sys


def processor():
    """The processor's name, where the system tells it."""
    try: return next(line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name"))
    except (OSError, StopIteration): return platform.processor() or platform.machine()


def describe(threads):
    """One line on hardware and software."""
    import torch
    return f"{processor()}, {threads} threads, {platform.system()}, Python {platform.python_version()}, torch {torch.__version__}"


def case(script, *arguments, limit=600):
    """Run `script` again with `arguments`; its last line is JSON. A case that fails or takes too long gives {"note": why}."""
    try:
        done = subprocess.run([sys.executable, script, *map(str, arguments)], capture_output=True, text=True,
                              timeout=limit)
    except subprocess.TimeoutExpired: return {"note": f"over {limit} s, stopped"}
    if done.returncode:
        return {"note": f"failed ({done.returncode}): {(done.stderr.splitlines() or ['no message'])[-1]}"}
    return json.loads(done.stdout.splitlines()[-1])
