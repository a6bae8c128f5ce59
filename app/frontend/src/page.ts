/** The page: what is seen, heard by a screen reader, and where the focus goes. */

import type { Context } from "@opentelemetry/api";
import type { Ask, State, Task, TaskPage } from "./api.ts";
import { interact } from "./interaction.ts";

type Unexpected = (error: unknown, where: Context) => void;
type Field = HTMLInputElement | HTMLTextAreaElement;

/** Return the element of that type; the page's HTML and this code must agree. */
function find<Found extends HTMLElement>(type: new () => Found, selector: string, below: ParentNode = document): Found {
  const found = below.querySelector(selector);
  if (!(found instanceof type)) throw new Error(`The page has no ${type.name} ${selector}`);
  return found;
}

function copyOf<Found extends HTMLElement>(type: new () => Found, template: string): Found {
  return find(type, "*", document.importNode(find(HTMLTemplateElement, template).content, true));
}

/** Bring the page to life. `parent` is the context in which the server made it. */
export function openPage(unexpected: Unexpected, parent: Context): void {
  const create = find(HTMLFormElement, "#create");
  const newTitle = find(HTMLInputElement, "#title");
  const newNotes = find(HTMLTextAreaElement, "#notes");
  const filter = find(HTMLElement, "#filter");
  const list = find(HTMLElement, "#tasks");
  const empty = find(HTMLElement, "#empty");
  const more = find(HTMLButtonElement, "#more");
  const error = find(HTMLElement, "#error");
  const status = find(HTMLElement, "#status");
  const dialog = find(HTMLDialogElement, "#confirm");
  let nextBefore: number | null = null;
  let wanted = 0; // counts the lists asked for: an answer that was overtaken by a newer one is not shown

  /** Do something in an interaction's span; show how it ended. `fields` are what the person may have to put right. */
  async function act(name: string, action: (ask: Ask) => Promise<string>, fields: readonly Field[] = [], within?: Context): Promise<void> {
    const failure = await interact(name, async (ask) => { say(await action(ask)); }, unexpected, within);
    error.hidden = failure === null;
    for (const field of fields) field.removeAttribute("aria-invalid");
    if (failure === null) return;
    say("");
    find(HTMLElement, "#error-text").textContent = failure.message;
    find(HTMLElement, "#error-trace").hidden = failure.traceId === "";
    find(HTMLElement, "#trace-id").textContent = failure.traceId;
    const wrong = fields.filter((field) => failure.fields.includes(field.name));
    for (const field of wrong) field.setAttribute("aria-invalid", "true");
    wrong[0]?.focus();
  }

  /** Tell it to who cannot see the list change. */
  function say(text: string): void {
    status.textContent = text;
  }

  const shownState = (): string => find(HTMLInputElement, "input:checked", filter).value;

  async function load(ask: Ask, before: number | null = null): Promise<string> {
    const mine = ++wanted;
    const query = new URLSearchParams();
    if (shownState()) query.set("state", shownState());
    if (before !== null) query.set("before", String(before));
    list.setAttribute("aria-busy", "true");
    try {
      const page = await ask<TaskPage>("GET", query.size ? `api/tasks?${query}` : "api/tasks");
      if (mine !== wanted) return "";
      const items = page.items.map(itemOf);
      if (before === null) list.replaceChildren(...items);
      else list.append(...items);
      nextBefore = page.next_before;
      more.hidden = nextBefore === null;
      if (before !== null) items[0]?.querySelector("input")?.focus(); // where the new ones begin
      return countShown();
    } finally {
      if (mine === wanted) list.setAttribute("aria-busy", "false");
    }
  }

  function countShown(): string {
    const count = list.childElementCount;
    empty.hidden = count > 0;
    return count === 1 ? "1 task shown" : `${count} tasks shown`;
  }

  /** Put an item's new form in its place, or take it away if it is not among what is shown; keep the focus near. */
  function replace(item: HTMLElement, task: Task | null, focus: string): void {
    const state: string = shownState();
    if (task && (!state || task.state === state)) {
      const changed = itemOf(task);
      item.replaceWith(changed);
      find(HTMLElement, focus, changed).focus();
      return;
    }
    const neighbour = item.nextElementSibling ?? item.previousElementSibling;
    item.remove();
    countShown();
    (neighbour?.querySelector<HTMLElement>(focus) ?? newTitle).focus();
  }

  function itemOf(task: Task): HTMLElement {
    const item = copyOf(HTMLLIElement, "#task");
    const path = `api/tasks/${task.id}`;
    item.classList.toggle("done", task.state === "done");
    find(HTMLElement, ".title", item).textContent = task.title;
    const notes = find(HTMLElement, ".notes", item);
    notes.textContent = task.notes;
    notes.hidden = !task.notes;

    const done = find(HTMLInputElement, ".state", item);
    done.checked = task.state === "done";
    done.addEventListener("change", () => {
      const state: State = done.checked ? "done" : "open";
      done.checked = task.state === "done"; // until the server has agreed
      void act(state === "done" ? "complete task" : "reopen task", async (ask) => {
        const changed = await (state === "done" ? ask<Task>("POST", `${path}/complete`) : ask<Task>("PATCH", path, { state }));
        replace(item, changed, ".state");
        return state === "done" ? "Task completed" : "Task opened again";
      });
    });

    const edit = find(HTMLButtonElement, ".edit", item);
    edit.setAttribute("aria-label", `Edit: ${task.title}`);
    edit.addEventListener("click", () => { editIn(item, task, path); });

    const remove = find(HTMLButtonElement, ".delete", item);
    remove.setAttribute("aria-label", `Delete: ${task.title}`);
    remove.addEventListener("click", () => {
      find(HTMLElement, "#confirm-title").textContent = task.title;
      dialog.returnValue = "";
      dialog.addEventListener("close", () => {
        if (dialog.returnValue !== "delete") return;
        void act("delete task", async (ask) => {
          await ask<null>("DELETE", path);
          replace(item, null, ".delete");
          return "Task deleted";
        });
      }, { once: true });
      dialog.showModal();
    });
    return item;
  }

  /** Let title and notes be edited where they stand. */
  function editIn(item: HTMLElement, task: Task, path: string): void {
    const form = copyOf(HTMLFormElement, "#editor");
    const title = find(HTMLInputElement, "input", form);
    const notes = find(HTMLTextAreaElement, "textarea", form);
    const close = (): void => { replace(item, task, ".edit"); };
    title.value = task.title;
    notes.value = task.notes;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      void act("edit task", async (ask) => {
        const changed = await ask<Task>("PATCH", path, { title: title.value, notes: notes.value });
        replace(item, changed, ".edit");
        return "Task changed";
      }, [title, notes]);
    });
    find(HTMLElement, "button[type=button]", form).addEventListener("click", close);
    form.addEventListener("keydown", (event) => { if (event.key === "Escape") close(); });
    item.replaceChildren(form);
    title.select();
  }

  create.addEventListener("submit", (event) => {
    event.preventDefault();
    void act("create task", async (ask) => {
      const task = await ask<Task>("POST", "api/tasks", { title: newTitle.value, notes: newNotes.value });
      create.reset();
      if (shownState() !== "done") list.prepend(itemOf(task));
      countShown();
      return "Task added";
    }, [newTitle, newNotes]);
  });
  filter.addEventListener("change", () => void act("filter tasks", load));
  more.addEventListener("click", () => void act("show more tasks", (ask) => load(ask, nextBefore)));
  void act("open page", load, [], parent);
}
