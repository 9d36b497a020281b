// LangChain's OpenAI clients against `fleet serve`.
import assert from "node:assert/strict";
import test from "node:test";

import { tool } from "@langchain/core/tools";
import { ChatOpenAI, OpenAIEmbeddings } from "@langchain/openai";
import { z } from "zod";

const address = {
  apiKey: process.env.FLEET_API_KEY,
  configuration: { baseURL: process.env.FLEET_API_URL },
  maxRetries: 0,
};
const chat = new ChatOpenAI({ model: "gpt-4o-mini", ...address });
const ANSWER = "Simulated answer to: Say hello.";

test("a message is answered", async () => {
  const answer = await chat.invoke("Say hello.");
  assert.equal(answer.text, ANSWER);
  assert.ok(answer.usage_metadata.total_tokens > 0);
});

test("a message is answered as a stream", async () => {
  let text = "";
  for await (const chunk of await chat.stream("Say hello.")) text += chunk.text;
  assert.equal(text, ANSWER);
});

test("a message is answered by the Responses API", async () => {
  const responses = new ChatOpenAI({ model: "gpt-4o-mini", useResponsesApi: true, ...address });
  assert.equal((await responses.invoke("Say hello.")).text, ANSWER);
});

test("a tool is called", async () => {
  const weather = tool(() => "sunny", {
    name: "weather",
    description: "The weather of a city.",
    schema: z.object({ city: z.string() }),
  });
  const answer = await chat.bindTools([weather], { tool_choice: "weather" }).invoke("Say hello.");
  assert.equal(answer.tool_calls[0].name, "weather");
});

test("structured output is parsed", async () => {
  const City = z.object({ name: z.string(), people: z.number() });
  const answer = await chat.withStructuredOutput(City).invoke("A city.");
  assert.equal(typeof answer.name, "string");
});

test("texts are embedded", async () => {
  const embeddings = new OpenAIEmbeddings({ model: "text-embedding-3-small", ...address });
  assert.equal((await embeddings.embedDocuments(["one", "two"])).length, 2);
});
