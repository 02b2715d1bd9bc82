// What the official Node SDK gets from a gateway, as one JSON object on standard output.
// Arguments: the folder in which the SDK is installed, the API's address, the token.
import { createRequire } from "node:module";

const [folder, baseURL, apiKey] = process.argv.slice(2);
const { default: OpenAI } = createRequire(`${folder}/`)("openai");
const messages = [{ role: "user", content: "Hello" }];
const tools = [{ type: "function", function: { name: "look", parameters: { type: "object" } } }];

let attempts = 0;
const counting = (url, options) => {
  attempts += 1;
  return fetch(url, options);
};
const client = new OpenAI({ baseURL, apiKey, fetch: counting });
const chat = client.chat.completions;

async function failure(call) {
  attempts = 0;
  try {
    await call();
    return null;
  } catch (error) {
    const { status, code, param, type, requestID, message } = error;
    return { name: error.constructor.name, status, code, param, type, attempts, hasId: Boolean(requestID), message };
  }
}

async function readAll(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
}

async function breakOff() {
  let said = "";
  const error = await failure(async () => {
    const stream = await chat.create({ model: "breaker", messages, stream: true });
    for await (const chunk of stream) said += chunk.choices[0].delta.content ?? "";
  });
  return { said, ...error };
}

async function leave() {
  const stream = await chat.create({ model: "starter", messages, stream: true });
  for await (const chunk of stream) if (chunk.choices[0].delta.content) break;
  return true;
}

const whole = await chat.create({ model: "talker", messages }, { headers: { "X-Request-Id": "req-mine" } });
const chunks = await readAll(
  await chat.create({ model: "talker", messages, stream: true, stream_options: { include_usage: true } }),
);
const called = await chat.create({ model: "caller", messages, tools });
const models = await readAll(await client.models.list());
const raw = await chat.create({ model: "talker", messages }).asResponse();

console.log(
  JSON.stringify({
    models: models.map((model) => model.id),
    whole: whole.choices[0].message.content,
    requestId: whole._request_id,
    streamed: chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join(""),
    ids: [...new Set(chunks.map((chunk) => chunk.id))].length,
    usage: chunks.at(-1).usage,
    helped: await chat.stream({ model: "talker", messages }).finalContent(),
    called: [
      called.choices[0].message.tool_calls,
      (await chat.stream({ model: "caller", messages, tools }).finalMessage()).tool_calls,
    ].map(([call]) => [call.id, call.type, call.function.name, call.function.arguments]),
    rawType: raw.headers.get("content-type"),
    broken: await breakOff(),
    left: await leave(),
    failures: {
      value: await failure(() => chat.create({ model: "talker", messages, n: 2 })),
      token: await failure(() => new OpenAI({ baseURL, apiKey: "no", fetch: counting }).models.list()),
      model: await failure(() => chat.create({ model: "nobody", messages, stream: true })),
      key: await failure(() => chat.create({ model: "locked", messages })),
      broken: await failure(() => chat.create({ model: "down", messages })),
    },
  }),
);
