// What the tests ask of `@ai-sdk/replicate`, by `generateImage` of `ai`.

import { createRequire } from "node:module";

import { createReplicate } from "@ai-sdk/replicate";
import { generateImage } from "ai";

const require = createRequire(import.meta.url);

// The SDK downloads from no address of this machine but that of its base URL. In life pictures come from a public host;
// here that host gets a public name, and the `fetch` that callers may give knows where it is.
function publicly(pictures) {
  if (!pictures) return undefined;
  const named = pictures.replace("127.0.0.1", "pictures.example");
  return async (url, init) => {
    const found = await fetch(String(url).replace(named, pictures), init);
    if (!found.headers.get("content-type")?.includes("json")) return found;
    const told = (await found.text()).replaceAll(pictures, named);
    return new Response(told, { status: found.status, headers: found.headers });
  };
}

export const version = () => require("@ai-sdk/replicate/package.json").version;

export async function generate(to, { model, prompt, pictures, options = {}, ...rest }) {
  const provider = createReplicate({ apiToken: to.token, baseURL: to.url, fetch: publicly(pictures) });
  const { images, warnings } = await generateImage({
    model: provider.image(model),
    prompt,
    maxRetries: 0,
    providerOptions: { replicate: { pollIntervalMillis: 50, ...options } },
    ...rest,
  });
  return {
    sizes: images.map((each) => each.uint8Array.length),
    types: images.map((each) => each.mediaType),
    warnings,
  };
}
