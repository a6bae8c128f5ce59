"use strict";

const element = (id) => document.getElementById(id);
const list = element("tasks");
let nextBefore = null;

/** Ask the API; an error becomes an Error that a person can read, with the trace id to quote. */
async function ask(path, method = "GET", body = undefined) {
  let answer;
  try {
    answer = await fetch(path, {
      method,
      headers: body === undefined ? {} : { "Content-Type": "application/json" },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch {
    throw new Error("The server cannot be reached.");
  }
  if (answer.status === 204) return null;
  const content = await answer.json().catch(() => ({}));
  if (!answer.ok) {
    const trace = content.trace_id ? ` (trace ${content.trace_id})` : "";
    throw new Error(`${content.detail || answer.statusText || `Error ${answer.status}`}${trace}`);
  }
  return content;
}

/** Do something that may fail, and show how it went. */
async function attempt(action) {
  try {
    await action();
    element("error").hidden = true;
  } catch (error) {
    element("error").textContent = error.message;
    element("error").hidden = false;
  }
}

function show(task) {
  const item = element("task").content.firstElementChild.cloneNode(true);
  const path = `api/tasks/${task.id}`;
  const done = item.querySelector("input");
  item.classList.toggle("done", task.state === "done");
  item.querySelector(".title").textContent = task.title;
  done.checked = task.state === "done";
  done.addEventListener("change", () => attempt(async () => {
    const wanted = done.checked;
    done.checked = !wanted; // until the server has agreed
    await (wanted ? ask(`${path}/complete`, "POST") : ask(path, "PATCH", { state: "open" }));
    await load();
  }));
  const edit = item.querySelector(".edit");
  edit.setAttribute("aria-label", `Edit ${task.title}`);
  edit.addEventListener("click", () => {
    const title = prompt("Title", task.title);
    if (title !== null) attempt(async () => { await ask(path, "PATCH", { title }); await load(); });
  });
  const remove = item.querySelector(".delete");
  remove.setAttribute("aria-label", `Delete ${task.title}`);
  remove.addEventListener("click", () => attempt(async () => { await ask(path, "DELETE"); await load(); }));
  return item;
}

/** Load the first page, or with `more` the next one. */
async function load(more = false) {
  const query = new URLSearchParams();
  const state = document.querySelector("#filter input:checked").value;
  if (state) query.set("state", state);
  if (more) query.set("before", nextBefore);
  list.setAttribute("aria-busy", "true");
  try {
    const page = await ask(`api/tasks?${query}`);
    const items = page.items.map(show);
    more ? list.append(...items) : list.replaceChildren(...items);
    nextBefore = page.next_before;
    element("more").hidden = nextBefore === null;
    element("empty").hidden = list.childElementCount > 0;
  } finally {
    list.setAttribute("aria-busy", "false");
  }
}

element("create").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(async () => {
    await ask("api/tasks", "POST", { title: element("title").value });
    element("title").value = "";
    await load();
  });
});
element("filter").addEventListener("change", () => attempt(load.bind(null, false)));
element("more").addEventListener("click", () => attempt(load.bind(null, true)));
attempt(load);
