"""Our extension of schemathesis: a body that keeps to the schema is refused only for what no schema can say.

In place of its own check, which wants every such body accepted: whether a prompt fits the context, or a threshold goes with
its mode, is seen only in the whole. What is wrong with one field alone, the schema could have told.
"""

import re

import schemathesis

ALONE = re.compile(r"\S+ (must be|is required)|\S+: this server (supports only|does not support)")


@schemathesis.check
def the_schema_tells(ctx, response, case):
    if response.status_code == 400 and case.meta.generation.mode.is_positive:
        told = response.json()["error"]["message"]
        assert not ALONE.match(told), f"the schema allows what the server refuses: {told}"
