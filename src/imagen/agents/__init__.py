"""Tools for agents, by the Model Context Protocol: the same over standard input and output and over HTTP.

What is done, and what it comes to, knows no protocol:

    workshop.py     Workshop               makes pictures and tells of them, for one caller
    known.py        Knowing                what this process knows of models, whoever does it
    here.py         AppWorkshop            this process does it
    there.py        RemoteWorkshop         a running gateway does it
    open_calls.py   OpenCalls              calls that buy something, so that one can stop another
    money.py        Purse, needs_consent   what may be bought without asking, and in all
    arguments.py                           what each tool takes
    answers.py                             what each tool returns, as facts and as a few lines of text
    words.py                               what people at a terminal are told, for whoever has tools
    progress.py     Progress               events of the core as numbers that only rise
    tools.py        tools                  each tool as a value

and how that is spoken:

    protocol.py     make_server            the tools as a server of the official SDK
    lines.py        serve_lines            over standard input and output
    exchange.py     serve_exchange         over HTTP, one request at a time

Only the last three import the SDK, which takes more than half a second: hosts import them when somebody comes.
"""
