// Vercel's AI SDK against `fleet serve`: its provider of OpenAI, and that of compatible servers.
import assert from "node:assert/strict";
import test from "node:test";

import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embed, generateObject, generateText, streamText } from "ai";
import { z } from "zod";

const address = { baseURL: process.env.FLEET_API_URL, apiKey: process.env.FLEET_API_KEY };
const openai = createOpenAI(address);
const compatible = createOpenAICompatible({ name: "fleet", ...address });
const prompt = "Say hello.";
const ANSWER = "Simulated answer to: Say hello.";

for (const [name, model] of [
  ["responses", openai("gpt-4o-mini")],
  ["chats", openai.chat("gpt-4o-mini")],
  ["a compatible server", compatible("gpt-4o-mini")],
]) {
  test(`${name}: a text is generated`, async () => {
    const answer = await generateText({ model, prompt, maxRetries: 0 });
    assert.equal(answer.text, ANSWER);
    assert.ok(answer.usage.totalTokens > 0);
  });

  test(`${name}: a text is streamed`, async () => {
    const answer = streamText({ model, prompt, maxRetries: 0 });
    let text = "";
    for await (const part of answer.textStream) text += part;
    assert.equal(text, ANSWER);
    assert.equal(await answer.finishReason, "stop");
  });
}

test("an object is generated", async () => {
  const schema = z.object({ name: z.string(), people: z.number() });
  const answer = await generateObject({
    model: openai.chat("gpt-4o-mini"),
    schema,
    prompt: "A city.",
    maxRetries: 0,
  });
  assert.equal(typeof answer.object.name, "string");
});

test("a value is embedded", async () => {
  const answer = await embed({ model: openai.embedding("text-embedding-3-small"), value: "one" });
  assert.equal(typeof answer.embedding[0], "number");
});
