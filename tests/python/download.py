"""Writes a file served by fleethold to stdout.

    download.py HOST:PORT SERVICE NAME CA_CERTIFICATE

Ends with status 44 when there is no such file.
"""

import ssl
import sys
import urllib.error
import urllib.parse
import urllib.request


def main():
    address, service, name, ca = sys.argv[1:]
    url = f"https://{address}/files/{escape(service)}/{escape(name)}"
    context = ssl.create_default_context(cafile=ca)
    try:
        with urllib.request.urlopen(url, context=context, timeout=30) as response:
            sys.stdout.buffer.write(response.read())
    except urllib.error.HTTPError as error:
        if error.code != 404:
            raise
        sys.exit(44)


def escape(part):
    """Escapes twice, as agents do: once for the name and once for the path."""
    return urllib.parse.quote(urllib.parse.quote(part, safe=""), safe="")


if __name__ == "__main__":
    main()
