// What the tests ask of `replicate`, the client for Node.

import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";

import Replicate, { validateWebhook } from "replicate";

const client = (to, options = {}) => new Replicate({ auth: to.token, baseUrl: to.url, ...options });

const addresses = (output) => (Array.isArray(output) ? output : [output]).map(String);

const shown = (prediction) => prediction;

export const version = () => createRequire(import.meta.url)("replicate/package.json").version;

export async function run(to, { ref, input, wait }) {
  const options = { input };
  if (wait !== undefined) options.wait = wait === false ? { mode: "poll", interval: 50 } : { mode: "block", timeout: wait };
  return addresses(await client(to).run(ref, options));
}

export async function run_and_read(to, { ref, input }) {
  const output = await client(to).run(ref, { input });
  return Promise.all(output.map(async (each) => (await each.blob()).size));
}

// The client has no way to add a header to one call: it goes in by the `fetch` that callers may give it.
const withHeaders = (headers) => ({
  fetch: (url, init) => fetch(url, { ...init, headers: { ...init?.headers, ...headers } }),
});

export const create = async (to, { model, input, headers, ...options }) =>
  shown(await client(to, withHeaders(headers)).predictions.create({ model, input, ...options }));

export const create_and_wait = async (to, { model, input, wait = true }) =>
  shown(await client(to).predictions.create({ model, input, wait }));

export const create_by_version = async (to, { version, input }) =>
  shown(await client(to).predictions.create({ version, input, wait: true }));

export async function create_by_deployment(to, { deployment, input }) {
  const [owner, name] = deployment.split("/");
  return shown(await client(to).deployments.predictions.create(owner, name, { input, wait: true }));
}

export const get = async (to, { id }) => shown(await client(to).predictions.get(id));

export async function wait(to, { id }) {
  const replicate = client(to);
  return shown(await replicate.wait(await replicate.predictions.get(id), { interval: 50 }));
}

export const cancel = async (to, { id }) => shown(await client(to).predictions.cancel(id));

export async function pages(to) {
  const replicate = client(to);
  const found = [];
  for await (const page of replicate.paginate(replicate.predictions.list)) found.push(page.map((each) => each.id));
  return found;
}

export async function files(to, { text }) {
  const replicate = client(to);
  const made = await replicate.files.create(new File([text], "note.txt", { type: "text/plain" }), { of: "a test" });
  const found = await replicate.files.get(made.id);
  const listed = (await replicate.files.list()).results.map((each) => each.id);
  return { made, found, listed, deleted: await replicate.files.delete(made.id) };
}

export const get_file = async (to, { id }) => client(to).files.get(id);

export async function run_with_file(to, { ref, name, path, input }) {
  const file = new File([await readFile(path)], "picture.png", { type: "image/png" });
  return addresses(await client(to).run(ref, { input: { ...input, [name]: file } }));
}

export async function stream(to, { ref, input }) {
  const found = [];
  for await (const { event, data } of client(to).stream(ref, { input })) found.push([event, String(data)]);
  return found;
}

export async function many(to, { ref, inputs }) {
  const replicate = client(to);
  return Promise.all(inputs.map(async (input) => addresses(await replicate.run(ref, { input }))));
}

export async function models(to, { model }) {
  const [owner, name] = model.split("/");
  const replicate = client(to);
  const found = await replicate.models.get(owner, name);
  const named = (each) => `${each.owner}/${each.name}`;
  return {
    name: named(found),
    listed: (await replicate.models.list()).results.map(named),
    schema: found.latest_version.openapi_schema,
    versions: (await replicate.models.versions.list(owner, name)).results.map((each) => each.id),
  };
}

export const search = async (to, { words }) =>
  (await client(to).models.search(words)).results.map((each) => `${each.owner}/${each.name}`);

export const account = async (to) => client(to).accounts.current();

export const hardware = async (to) => (await client(to).hardware.list()).map((each) => each.sku);

export const collections = async (to) => (await client(to).collections.list()).results.map((each) => each.slug);

export async function webhook_is_valid(to, { headers, body }) {
  const secret = await client(to).webhooks.default.secret.get();
  return validateWebhook({ headers, body }, secret.key);
}
