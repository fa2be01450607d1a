"""What a key's policy allows: as much of IAM as the tests' policies use, and no more allowed than
IAM would."""

import fnmatch

PCR = "kms:recipientattestation:pcr"
IMAGE = "kms:recipientattestation:imagesha384"


def allows(policy, caller, action, pcrs):
    """Whether a caller may do this. `pcrs` are a verified document's, or None without one."""
    statements = policy["Statement"]
    if isinstance(statements, dict):
        statements = [statements]
    said = [s["Effect"] for s in statements if _matches(s, caller, action, pcrs)]
    return "Allow" in said and "Deny" not in said


def _list(value):
    return value if isinstance(value, list) else [value]


def _matches(statement, caller, action, pcrs):
    principal = statement["Principal"]
    who = ["*"] if principal == "*" else _list(principal["AWS"])
    root = f"arn:aws:iam::{caller.split(':')[4]}:root"
    if not {"*", caller, root} & set(who):
        return False
    if not any(fnmatch.fnmatchcase(action, a) for a in _list(statement["Action"])):
        return False
    for operator, wanted in statement.get("Condition", {}).items():
        if operator not in ("StringEqualsIgnoreCase", "StringEquals"):
            raise ValueError(f"the test KMS does not know {operator}")
        for key, values in wanted.items():
            found = _measurement(key.lower(), pcrs)
            values = _list(values)
            if operator == "StringEqualsIgnoreCase":
                values = [value.lower() for value in values]
            if found is None or found not in values:
                return False
    return True


def _measurement(key, pcrs):
    if key == IMAGE:
        key = PCR + "0"
    if not key.startswith(PCR):
        raise ValueError(f"the test KMS does not know {key}")
    return None if pcrs is None else pcrs.get(int(key.removeprefix(PCR)))
