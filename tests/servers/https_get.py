"""Fetches an HTTPS page with Python's own client: https_get.py URL CA_FILE"""

import ssl
import sys
import urllib.request

url, ca_file = sys.argv[1:]
context = ssl.create_default_context(cafile=ca_file)
with urllib.request.urlopen(url, context=context, timeout=20) as response:
    print(response.status, response.read().decode(), end="")
