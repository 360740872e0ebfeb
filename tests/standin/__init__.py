"""A stand-in for the Anthropic and OpenAI APIs: `python -m tests.standin --port N`, or `make standin`.

It serves Messages, count_tokens and models below `/anthropic`, Chat Completions, Responses, models and conversations below
`/openai/v1`. Any key will do, but one must come. The same request gets the same answer, byte for byte, ids included.

The model's name says what the answer is like: `standin-` and one or more of these, joined by `+`, as in
`standin-thinking+tools+cached+split-7`. Any other name gets a short text.

    thinking, tools, cached      it thinks (a reasoning summary and commentary, where the protocol has them); calls two
                                 tools, unless the request answers a tool call; has read from a cache, and written to it
    long, long-N                 N pieces of text (200)
    cut                          the answer ended at its most tokens

    slow-N                       N milliseconds before each event (20)
    silent-N                     N milliseconds of silence in the middle (11000)
    stall                        nothing at all, until the client goes away

    error-STATUS                 an error instead of an answer; 429 and 503 say `retry-after: 1`, or with after-N: N
    flaky-N                      N errors (503) for a request, then its answer
    error                        a stream that ends in an error after half of its events; or else an error 529 or 500
    reset                        the connection is reset before the answer
    broken                       the connection is reset after half of the answer
    half                         the stream ends in the middle of an event, in good order; or else the body is cut short
    garbage                      what no client understands: a body that is no JSON, or such events
    redirect                     a redirect to another host
    gzip                         encoded, whether the client accepts that or not

    no-usage, usage-last         chat streams: usage never, or with the last choice rather than in a chunk of its own
    cr, crlf                     the line ends of a stream
    split-N                      a body that is written in pieces of random sizes; N seeds them
    comments                     a comment between events, and a byte order mark

A user's message that has `call NAME {…}` in it is answered by that tool call, whatever the model. Each answer has a
request id; `GET /exchanges` tells what was answered under which id (the newest 10,000): path, model, status, streaming,
the SHA-256 of the body, and that of the body without the chunk that is there only because `include_usage` asked for it.
"""
