"""Compares a configuration fragment with a final .config: every line of the fragment must stand in it.

A symbol that the final file does not name at all counts as off. Prints what is missing and ends with 1.
"""

import re
import sys


def parse(path):
    values = {}
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            if found := re.fullmatch(r"(CONFIG_\w+)=(.*)", line.rstrip()):
                values[found[1]] = found[2]
            elif found := re.fullmatch(r"# (CONFIG_\w+) is not set", line.rstrip()):
                values[found[1]] = "n"
    return values


def main():
    wished, final = parse(sys.argv[1]), parse(sys.argv[2])
    wrong = [
        f"{name}: wished {value}, got {final.get(name, 'n')}"
        for name, value in wished.items()
        if final.get(name, "n") != value
    ]
    for line in wrong:
        print(line, file=sys.stderr)
    sys.exit(1 if wrong else 0)


main()
