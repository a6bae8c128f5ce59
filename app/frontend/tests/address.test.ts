import assert from "node:assert/strict";
import { test } from "node:test";
import { publicAddress, publicText } from "../src/address.ts";

const OWN = "https://tasks.example";

void test("the query, the fragment and a user are taken off an address", () => {
  assert.equal(publicAddress("https://tasks.example/api/tasks?q=secret#also", OWN), "https://tasks.example/api/tasks");
  assert.equal(publicAddress("https://jane:pw@tasks.example/x", OWN), "https://tasks.example/x");
});

void test("of another origin nothing but the scheme is told", () => {
  assert.equal(publicAddress("chrome-extension://abcdef/content.js", OWN), "chrome-extension:");
  assert.equal(publicAddress("https://elsewhere.example/jane", OWN), "https:");
  assert.equal(publicAddress("no address", OWN), "invalid:");
});

void test("a stack trace keeps its lines but no query", () => {
  const stack = "Error: x\n    at f (https://tasks.example/static/a.js:1:23)\n    at https://tasks.example/?user=jane:4:5";
  const cleaned = "Error: x\n    at f (https://tasks.example/static/a.js:1:23)\n    at https://tasks.example/";
  assert.equal(publicText(stack, OWN), cleaned);
});
