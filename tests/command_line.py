"""The JSON of the command line, held to the strict form."""

import json


def strict_json(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    result = json.loads(text, parse_constant=refuse)
    assert result["schema"] == 1 and isinstance(result["ok"], bool)
    return result
