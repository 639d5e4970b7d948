# SPDX-License-Identifier: Apache-2.0
"""The screen of `orc top`: three tables to navigate. The only module that imports Textual; it is
imported only at a terminal."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from rich.text import Text
from textual import events, on
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import DataTable, Footer, Static

from orchestrator.cli.app import interrupts
from orchestrator.cli.app.command_groups import error_line
from orchestrator.cli.app.contexts import Context
from orchestrator.cli.app.errors import INTERRUPTED, CliError
from orchestrator.cli.output.listings import Row
from orchestrator.cli.output.screen import align_columns
from orchestrator.cli.top.top_feed import Feed
from orchestrator.cli.top.top_views import (
    NODES,
    SERVICES,
    TASKS,
    VIEWS,
    Choice,
    Field,
    Figures,
    View,
    headline,
    visible_rows,
)

REFRESH = 0.25
"""Seconds between two redraws."""
MAX_ROWS = 500
"""Maximum number of rows drawn; a filter finds the others."""
_STATES = {"ready": "green", "running": "green", "pending": "yellow", "starting": "yellow"}
_STATES |= {"down": "red", "failed": "red", "restarting": "yellow", "paused": "yellow"}


def run(context: Context) -> int:
    """Show the cluster until the user quits: an exit status. Raises CliError."""
    feed = Feed(context)
    feed.start()
    interrupts.uninstall()
    return Top(feed, context.name).run() or 0


class Processes(ModalScreen[None]):
    """The processes of a container."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,enter", "dismiss", "Back"),
    ]
    DEFAULT_CSS = """
    Processes { align: center middle; }
    Processes VerticalScroll { width: 90%; height: 80%; border: round $primary; padding: 0 1; }
    """

    def __init__(self, title: str, lines: list[str]) -> None:
        super().__init__()
        self._title = title
        self._lines = lines

    def compose(self) -> ComposeResult:
        with VerticalScroll() as scroll:
            scroll.border_title = f"{self._title}  (Esc: back)"
            yield Static(Text("\n".join(self._lines)))


class Top(App[int]):
    """The application."""

    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #head { height: 1; background: $panel; color: $text; padding: 0 1; }
    #trail { height: 1; padding: 0 1; }
    #problem { height: auto; color: $error; padding: 0 1; display: none; }
    DataTable { height: 1fr; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("1,n", "show('nodes')", "Nodes"),
        Binding("2,s", "show('services')", "Services"),
        Binding("3,t", "show('tasks')", "Tasks"),
        Binding("enter", "enter", "Enter", priority=False),
        Binding("escape", "out", "Back"),
        Binding("less_than_sign,comma", "sort(-1)", "Sort by", show=False),
        Binding("greater_than_sign,full_stop,o", "sort(1)", "Sort by"),
        Binding("r", "reverse", "Reverse"),
        Binding("slash", "filter", "Filter"),
        Binding("space", "pause", "Pause"),
        Binding("q", "leave(0)", "Quit"),
        Binding("ctrl+c", f"leave({INTERRUPTED})", show=False, priority=True),
    ]

    def __init__(self, feed: Feed, name: str) -> None:
        super().__init__()
        self._feed = feed
        self._name = name
        self._figures = Figures()
        self._seen = -1
        self._view: View = NODES
        self._choices = {view.name: Choice() for view in VIEWS}
        self._trail: list[tuple[View, Choice, str]] = []
        """The path of the navigation: view, choice, and the key of the entered row."""
        self._paused = False
        self._typing = False
        """Whether keys edit the filter."""

    def compose(self) -> ComposeResult:
        yield Static(id="head")
        yield Static(id="problem")
        yield Static(id="trail")
        table: DataTable[Text] = DataTable(cursor_type="row", zebra_stripes=True)
        yield table
        yield Footer()

    def on_mount(self) -> None:
        self.query_one(DataTable).focus()
        self._columns()
        self._look()
        self.set_interval(REFRESH, self._look)

    def _look(self) -> None:
        if self._paused or self._feed.version == self._seen:
            return
        self._seen = self._feed.version
        self._figures = self._feed.figures()
        self._draw()

    @property
    def _choice(self) -> Choice:
        return self._choices[self._view.name]

    @_choice.setter
    def _choice(self, choice: Choice) -> None:
        self._choices[self._view.name] = choice

    def _columns(self) -> None:
        """Rebuild the table, with the view's headings."""
        table = self.query_one(DataTable)
        table.clear(columns=True)
        for number, field in enumerate(self._view.fields):
            table.add_column(self._heading(number, field), key=field.heading)

    def _heading(self, number: int, field: Field) -> Text:
        if number != self._choice.sort:
            return Text(field.heading)
        down = field.number != self._choice.reverse
        return Text(f"{field.heading} {'▼' if down else '▲'}", style="bold")

    def _draw(self, at: str | None = None) -> None:
        """Show the latest figures; the cursor stays on its object, or moves to `at`."""
        table = self.query_one(DataTable)
        at = at or self._key()
        rows = visible_rows(self._view, self._figures, self._choice)
        keys = [row["id"] for row in rows[:MAX_ROWS]]
        if [key.value for key in table.rows] == keys:
            for row in rows[:MAX_ROWS]:
                for field in self._view.fields:
                    cell = _cell(field, row)
                    table.update_cell(row["id"], field.heading, cell, update_width=True)
        else:
            scroll = table.scroll_y
            table.clear()
            for row in rows[:MAX_ROWS]:
                table.add_row(*(_cell(field, row) for field in self._view.fields), key=row["id"])
            if at in keys:
                table.move_cursor(row=keys.index(at), scroll=False)
            table.scroll_to(y=scroll, animate=False)
        self._draw_head(len(rows))

    def _draw_head(self, count: int) -> None:
        self.query_one("#head", Static).update(Text(f"{self._name}: {headline(self._figures)}"))
        problem = self.query_one("#problem", Static)
        problem.display = bool(self._figures.problem)
        problem.update(Text(self._figures.problem))
        trail = self.query_one("#trail", Static)
        if self._typing:
            trail.update(Text(f"/{self._choice.text}█  ({count}; Enter keeps it, Esc drops it)"))
            return
        words = [self._view.name, *(f"{k} {v}" for k, v in self._choice.scope.items())]
        if self._choice.text:
            words.append(f"with “{self._choice.text}”")
        words.append(
            f"{count} of them" if count <= MAX_ROWS else f"the first {MAX_ROWS} of {count}"
        )
        if self._paused:
            words.append("PAUSED")
        trail.update(Text(", ".join(words), style="bold"))

    def _key(self) -> str | None:
        """The id of the row under the cursor."""
        table = self.query_one(DataTable)
        if not table.row_count:
            return None
        return table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value

    def _current(self) -> Row | None:
        key = self._key()
        return next((row for row in self._view.rows(self._figures) if row["id"] == key), None)

    def action_show(self, name: str) -> None:
        """Switch to a view."""
        self._trail.clear()
        for each in self._choices:
            self._choices[each] = replace(self._choices[each], scope={})
        self._change(next(view for view in VIEWS if view.name == name))

    def _change(self, view: View, at: str | None = None) -> None:
        self._view = view
        self._columns()
        self._draw(at)

    @on(DataTable.RowSelected)
    def action_enter(self) -> None:
        """From a node or service to its tasks, from a task to its processes."""
        row = self._current()
        if row is None:
            return
        if self._view is TASKS:
            self._show_processes(row)
            return
        key = "service" if self._view is SERVICES else "node"
        self._trail.append((self._view, self._choices["tasks"], row["id"]))
        self._choices["tasks"] = Choice(scope={key: row["name"]})
        self._change(TASKS)

    def _show_processes(self, row: Row) -> None:
        try:
            titles, rows = self._feed.processes(row["id"])
        except CliError as error:
            self.notify(error_line(error), severity="error")
            return
        lines = align_columns([titles, *([str(each[title]) for title in titles] for each in rows)])
        self.push_screen(Processes(f"processes of {row['name']} on {row['node']}", lines))

    def action_out(self) -> None:
        """Back to the previous view, or leave the filter."""
        if self._trail:
            view, choice, at = self._trail.pop()
            self._choices["tasks"] = choice
            self._change(view, at)
        elif self._choice.text:
            self._choice = replace(self._choice, text="")
            self._draw()

    def action_sort(self, step: int) -> None:
        """Sort by the next column."""
        count = len(self._view.fields)
        self._choice = replace(self._choice, sort=(self._choice.sort + step) % count, reverse=False)
        self._change(self._view, self._key())

    def action_reverse(self) -> None:
        """Reverse the order."""
        self._choice = replace(self._choice, reverse=not self._choice.reverse)
        self._change(self._view, self._key())

    @on(DataTable.HeaderSelected)
    def _sort_by(self, event: DataTable.HeaderSelected) -> None:
        if event.column_index == self._choice.sort:
            self.action_reverse()
        else:
            self._choice = replace(self._choice, sort=event.column_index, reverse=False)
            self._change(self._view, self._key())

    def action_pause(self) -> None:
        """Pause or resume updates."""
        self._paused = not self._paused
        self._draw()

    def action_filter(self) -> None:
        """Edit the filter, until Enter or Escape."""
        self._typing = True
        self._draw()

    async def on_event(self, event: events.Event) -> None:
        """While the filter is edited, keys go to it first. (A widget would get the focus only after
        the key that opened it, and miss the keys in between.)"""
        if self._typing and isinstance(event, events.Key) and event.key != "ctrl+c":
            self._type(event)
        else:
            await super().on_event(event)

    def _type(self, event: events.Key) -> None:
        text = self._choice.text
        if event.key in ("enter", "escape"):
            self._typing = False
            text = text if event.key == "enter" else ""
        elif event.key in ("backspace", "ctrl+h"):
            text = text[:-1]
        elif event.key == "ctrl+u":
            text = ""
        elif event.is_printable and event.character:
            text += event.character
        self._choice = replace(self._choice, text=text)
        self._draw()

    def action_leave(self, status: int) -> None:
        """End."""
        self.exit(status)


def _cell(field: Field, row: Row) -> Text:
    text = field.text(row)
    if field.level is not None:
        level = field.level(row)
        style = "red" if level >= 0.9 else "yellow" if level >= 0.7 else "green"
    else:
        style = _STATES.get(text, "") if field.heading == "STATE" else ""
    right: Any = "right" if field.number and field.level is None else "left"
    return Text(text, style=style, justify=right, no_wrap=True)
