// The other side of `clients.py`: takes steps with the clients for Node, one a line, until its input ends.
//
//     node steps.mjs with_replicate.mjs
//
// Each line is `{"step": name, "to": {"url", "token"}, "given": {…}}`; each answer `{"done": …}`, or `{"error": {…}}`
// with what the client threw.

import { createInterface } from "node:readline";

const steps = await import(new URL(process.argv[2], import.meta.url));
const answer = (value) => process.stdout.write(`${JSON.stringify(value)}\n`);
console.log = console.info = console.warn = console.error; // whatever a client prints is no answer

function told(error) {
  const response = error.response ?? {};
  return {
    kind: error.name ?? error.constructor.name,
    kinds: [error.constructor.name],
    text: String(error.message ?? error),
    status: response.status ?? error.statusCode ?? null,
    body: error.responseBody ?? null,
    cause: error.cause ? String(error.cause) : null,
  };
}

answer({});
for await (const line of createInterface({ input: process.stdin })) {
  const asked = JSON.parse(line);
  try {
    answer({ done: (await steps[asked.step](asked.to, asked.given)) ?? null });
  } catch (error) {
    answer({ error: told(error) });
  }
}
