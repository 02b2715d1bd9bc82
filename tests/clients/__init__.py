"""Other people's clients against a real gateway: LiteLLM, LangChain's ChatOpenAI, pydantic-ai and the ``llm`` command.

    cd tests && python -m clients [--kind gateway|hypercorn] [NAME ...]

Each client lives in a virtual environment of its own, which pip makes on the first run in a cache folder
(``$PICOCLAW_TEST_CACHE``, else one in the system's temporary folder) and which stays there for the next one: the first
run takes a minute or two, any other some twenty seconds. The Python that runs this needs what the test suite needs.

A client is a row of ``CLIENTS`` in ``runner`` and a file ``use_<name>.py`` here. The file is run by the client's own
Python with the API's address and a token, and prints one JSON object: what it got of a whole answer, of a streamed one
(piece by piece), of a tool call, and which errors it raised. ``runner.check`` compares it with what was said. The last
line counts clients; the exit status is 1 if one of them got anything else.
"""
