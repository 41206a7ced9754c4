"""Describe the machine, and run each case of a benchmark in its own process, which measures its peak memory alone."""
import json
import platform
import subprocess
import sys


def describe(threads):
    """Hardware and software in one line."""
    import torch

    from sashimi_wb.core.system import processor_name
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{processor_name()}, {threads} threads, {platform.system()}, {versions}"


def case(script, *arguments, limit=600):
    """Run `script` with `arguments` in a new process and read its last line as JSON.

    A case that fails, or takes over `limit` seconds, gives {"note": reason}."""
    try:
        done = subprocess.run([sys.executable, script, *map(str, arguments)], capture_output=True, text=True,
                              timeout=limit)
    except subprocess.TimeoutExpired: return {"note": f"over {limit} s, stopped"}
    if done.returncode:
        return {"note": f"failed ({done.returncode}): {(done.stderr.splitlines() or ['no message'])[-1]}"}
    return json.loads(done.stdout.splitlines()[-1])
