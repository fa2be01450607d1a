"""MiniStack's instance metadata service, version 2 alone, for a role that the KMS of the tests knows.

MiniStack makes up the credentials that it hands out; everything else is its own: tokens, paths,
what it refuses.

usage: imds.py ADDRESS ACCESS-KEY SECRET TOKEN
"""

import os
import sys

address, *credentials = sys.argv[1:]
os.environ.update(BIND_HOST=address, GATEWAY_PORT="80", MINISTACK_IMDS_V2_REQUIRED="1")

from ministack import app  # pylint: disable=wrong-import-position
from ministack.services import imds  # pylint: disable=wrong-import-position

makers = ("_gen_session_access_key", "_gen_secret", "_gen_session_token")
for maker, value in zip(makers, credentials, strict=True):
    # A release that names them otherwise is an error, not a service of random credentials.
    assert callable(getattr(imds, maker))
    setattr(imds, maker, lambda value=value: value)

sys.argv[1:] = []
app.main()
