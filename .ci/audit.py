"""Say what pip-audit found; exit with 1 for a known vulnerability, not for a silent database.

Usage: pip-audit --format json >audit.json; python .ci/audit.py audit.json
"""

import json
import sys


def main(path: str) -> int:
    """Print what the report says."""
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)["dependencies"]
    except (OSError, ValueError, KeyError):
        print("audit: pip-audit gave no report: NOT audited")
        return 0
    asked = [one for one in found if "vulns" in one]
    for one in asked:
        for hole in one["vulns"]:
            fixed = ", ".join(hole["fix_versions"]) or "no version yet"
            print(f"audit: {one['name']} {one['version']}: {hole['id']}, fixed in {fixed}")
    holes = sum(len(one["vulns"]) for one in asked)
    missing = len(found) - len(asked)
    print(f"audit: {len(asked)} packages, {holes} known vulnerabilities", end="")
    print(f"; {missing} packages NOT audited: the database did not answer" if missing else "")
    return bool(holes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
