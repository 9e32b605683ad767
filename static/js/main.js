// The entry. The order of the imports is the order in which modules handle the same event.
import "./input_method.js"; // first: hides keys from all others
import "./starts.js";
import "./stop.js";
import "./stream_start.js";
import "./composer.js";
import "./feed.js";
import "./unreachable.js";
import "./answers.js";
import "./elapsed.js";
import "./steps.js";
import "./scrollers.js";
import "./scroll.js";
import "./copy.js";
import "./versions.js";
import "./queue.js";
import "./models.js";
import "./ideas.js";
import "./sidebar/list.js";
import "./sidebar/groups.js";
import "./sidebar/change.js";
import "./sidebar/menu.js";
import "./sidebar/rename.js";
import "./sidebar/sheet.js";
import "./escape.js";
import "./sidebar/toast.js";
import "./keys.js";
import "./paging.js";
import "./other_tabs.js";
import "./drafts.js";
import "./screen_keyboard.js";

document.dispatchEvent(new Event("halt:ready")); // to early.js: all modules have run
