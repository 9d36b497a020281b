// OpenAI's SDK for Node against `fleet serve`, changed in nothing but its base URL.
import assert from "node:assert/strict";
import test from "node:test";
import { setTimeout as sleep } from "node:timers/promises";

import OpenAI, { toFile } from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const client = new OpenAI({
  baseURL: process.env.FLEET_API_URL,
  apiKey: process.env.FLEET_API_KEY,
  maxRetries: 0,
});
const model = "gpt-4o-mini";
const messages = [{ role: "user", content: "Say hello." }];
const ANSWER = "Simulated answer to: Say hello.";
const City = z.object({ name: z.string(), people: z.number().int() });

test("a chat is answered", async () => {
  const answer = await client.chat.completions.create({ model, messages });
  assert.equal(answer.choices[0].message.content, ANSWER);
  assert.ok(answer._request_id);
});

test("a stream arrives in chunks", async () => {
  const stream = await client.chat.completions.create({
    model,
    messages,
    stream: true,
    stream_options: { include_usage: true },
  });
  let text = "";
  let last;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta?.content ?? "";
    last = chunk;
  }
  assert.equal(text, ANSWER);
  assert.ok(last.usage.total_tokens > 0);
});

test("a tool is called", async () => {
  const tools = [
    {
      type: "function",
      function: {
        name: "weather",
        parameters: { type: "object", properties: { city: { type: "string" } } },
      },
    },
  ];
  const answer = await client.chat.completions.create({
    model,
    messages,
    tools,
    tool_choice: "required",
  });
  assert.equal(answer.choices[0].message.tool_calls[0].function.name, "weather");
});

test("structured output is parsed", async () => {
  const answer = await client.chat.completions.parse({
    model,
    messages,
    response_format: zodResponseFormat(City, "city"),
  });
  assert.equal(typeof answer.choices[0].message.parsed.name, "string");
  const response = await client.responses.parse({
    model,
    input: "A city.",
    text: { format: zodTextFormat(City, "city") },
  });
  assert.equal(typeof response.output_parsed.name, "string");
});

test("embeddings have numbers", async () => {
  const answer = await client.embeddings.create({
    model: "text-embedding-3-small",
    input: ["one", "two"],
  });
  assert.equal(answer.data.length, 2);
  assert.equal(typeof answer.data[0].embedding[0], "number");
});

test("a response in the background is resumed", async () => {
  const stream = await client.responses.create({
    model,
    input: "Say hello.",
    background: true,
    stream: true,
  });
  const events = [];
  for await (const event of stream) {
    events.push(event);
    if (events.length === 2) break;
  }
  const { id } = events[0].response;
  const rest = await client.responses.retrieve(id, {
    stream: true,
    starting_after: events.at(-1).sequence_number,
  });
  for await (const event of rest) events.push(event);
  assert.deepEqual(
    events.map((event) => event.sequence_number),
    events.map((_, index) => index),
  );
  assert.equal(events.at(-1).response.output_text ?? (await client.responses.retrieve(id)).output_text, ANSWER);
});

test("a response is retrieved and deleted", async () => {
  const created = await client.responses.create({ model, input: "Say hello." });
  assert.equal((await client.responses.retrieve(created.id)).output_text, ANSWER);
  await client.responses.delete(created.id);
  await assert.rejects(client.responses.retrieve(created.id), OpenAI.NotFoundError);
});

test("errors are those of the SDK", async () => {
  await assert.rejects(client.chat.completions.create({ model: "gpt-9", messages }), (error) => {
    assert.ok(error instanceof OpenAI.NotFoundError);
    assert.equal(error.code, "model_not_found");
    return true;
  });
  await assert.rejects(
    client.chat.completions.create({ model, messages, temperature: -1 }),
    OpenAI.BadRequestError,
  );
  const stranger = new OpenAI({ baseURL: client.baseURL, apiKey: "wrong", maxRetries: 2 });
  await assert.rejects(stranger.models.list(), OpenAI.AuthenticationError);
});

test("models are listed", async () => {
  const names = [];
  for await (const one of client.models.list()) names.push(one.id);
  assert.ok(names.includes(model));
});

test("a file of requests is answered as a batch", async () => {
  const lines = ["one", "two"].map((custom_id) =>
    JSON.stringify({
      custom_id,
      method: "POST",
      url: "/v1/chat/completions",
      body: { model, messages: [{ role: "user", content: custom_id }] },
    }),
  );
  const file = await client.files.create({
    file: await toFile(Buffer.from(lines.join("\n")), "in.jsonl"),
    purpose: "batch",
  });
  let batch = await client.batches.create({
    input_file_id: file.id,
    endpoint: "/v1/chat/completions",
    completion_window: "24h",
    metadata: { "x-fleet-lane": "realtime" },
  });
  while (!batch.output_file_id && !batch.error_file_id && batch.status !== "failed") {
    await sleep(100);
    batch = await client.batches.retrieve(batch.id);
  }
  assert.equal(batch.status, "completed");
  const text = await (await client.files.content(batch.output_file_id)).text();
  const answers = text.trim().split("\n").map((line) => JSON.parse(line));
  assert.deepEqual(answers.map((answer) => answer.custom_id).sort(), ["one", "two"]);
  const listed = [];
  for await (const one of client.batches.list({ limit: 1 })) listed.push(one.id);
  assert.ok(listed.includes(batch.id));
  await client.files.delete(file.id);
});
