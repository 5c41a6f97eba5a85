"""What the report's page looks like and the little it does: it sorts its table, and opens its rows."""

COLOURS = {  # of causes, told apart by the colour-blind too (Okabe and Ito)
    "rounding": "#0072b2",
    "saturation": "#d55e00",
    "weights": "#009e73",
    "kernel": "#cc79a7",
    "other": "#8a919c",
}

CSS = """
:root{color-scheme:light dark;--bg:#fff;--fg:#17191d;--dim:#5a616c;--line:#d9dce1;--card:#f4f5f7;--limit:#c22f2f}
@media (prefers-color-scheme:dark){
:root{--bg:#14161a;--fg:#e8eaed;--dim:#a2a9b4;--line:#343941;--card:#1d2026;--limit:#ff7a70}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1120px;padding:16px 20px 48px;background:var(--bg);color:var(--fg);
font:16px/1.45 system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",sans-serif}
h1{font-size:clamp(21px,3.1vw,31px);line-height:1.22;margin:6px 0 8px;text-wrap:balance;overflow-wrap:anywhere}
h2{font-size:20px;margin:36px 0 8px}
p{margin:6px 0;max-width:78ch;overflow-wrap:anywhere}
code{font:0.93em ui-monospace,"Liberation Mono",monospace;background:var(--card);padding:0 4px;border-radius:4px}
.dim,figcaption,th{color:var(--dim)}
.lead{font-size:18px}
.small{font-size:14px}
.cards{display:flex;flex-wrap:wrap;gap:10px;margin:14px 0}
.card{background:var(--card);border-radius:10px;padding:10px 16px;flex:1 1 200px}
.card b{display:block;font-size:34px;line-height:1.15;font-weight:650}
.card b small{font-size:17px;font-weight:400}
.card span{color:var(--dim);font-size:14px}
figure{margin:0}
.chart{position:relative;display:flex;align-items:stretch;gap:2px;height:210px;margin:30px 0 0}
.column{position:relative;flex:1 1 0;min-width:1px}
.column:hover{background:var(--card)}
.column i{position:absolute;left:0;right:0;min-height:1px}
.column u{position:absolute;bottom:100%;white-space:nowrap;text-decoration:none;font-weight:650;font-size:15px;
max-width:70vw;overflow:hidden;text-overflow:ellipsis}
.zero{position:absolute;left:0;right:0;border-top:1px solid var(--dim)}
.names{display:flex;gap:2px;font-size:13px;color:var(--dim);text-align:center}
.names span{flex:1 1 0;min-width:0;overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.ends{display:flex;justify-content:space-between;font-size:13px;color:var(--dim)}
.legend{display:flex;flex-wrap:wrap;gap:4px 18px;font-size:14px;margin:8px 0}
.legend i{display:inline-block;width:12px;height:12px;border-radius:3px;margin-right:6px;vertical-align:-1px}
.wide{overflow-x:auto;border:1px solid var(--line);border-radius:10px}
table{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums}
th,td{padding:6px 10px;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}
th:first-child,td:first-child{text-align:left}
td.text{white-space:normal;min-width:240px;overflow-wrap:anywhere}
th{font-weight:600;font-size:13px;vertical-align:bottom}
th button,td button{all:unset;cursor:pointer;max-width:360px;overflow-wrap:anywhere;white-space:normal}
th button:focus-visible,td button:focus-visible,summary:focus-visible{outline:2px solid var(--fg);outline-offset:2px}
td button::before{content:"\\25b8";display:inline-block;width:1.1em;color:var(--dim)}
td button[aria-expanded=true]::before{content:"\\25be"}
th[aria-sort=ascending] button::after{content:" \\2191"}
th[aria-sort=descending] button::after{content:" \\2193"}
td.more{text-align:left;white-space:normal;background:var(--card)}
svg{display:block;width:100%;max-width:620px;height:auto}
svg text{font:12px system-ui,"Liberation Sans",sans-serif;fill:var(--fg)}
svg .dim{fill:var(--dim)}
.float{fill:var(--dim);opacity:.45}
.integer{fill:none;stroke:#0072b2;stroke-width:1.6}
.limit{stroke:var(--limit);stroke-width:1.5;stroke-dasharray:4 3}
.axis{stroke:var(--dim)}
.bar{display:inline-block;height:9px;border-radius:2px;vertical-align:0}
@media (prefers-color-scheme:dark){.integer{stroke:#56b4e9}}
@media (max-width:560px){body{padding:12px 12px 40px}.card{flex:1 1 140px;padding:8px 12px}.card b{font-size:27px}
.chart{height:170px}}
@media print{[hidden]{display:table-row!important}}
"""

SHOW_ALL = "<noscript><style>tr[hidden]{display:table-row}</style></noscript>"

SCRIPT = """
document.querySelectorAll('td button').forEach(b=>b.addEventListener('click',()=>{
const open=b.getAttribute('aria-expanded')==='true';b.setAttribute('aria-expanded',!open);
b.closest('tbody').rows[1].hidden=open}));
document.querySelectorAll('table.sorted').forEach(t=>t.querySelectorAll('th button').forEach((b,i)=>
b.addEventListener('click',()=>{const h=b.parentNode,up=h.getAttribute('aria-sort')!=='ascending';
t.querySelectorAll('th').forEach(o=>o.removeAttribute('aria-sort'));
h.setAttribute('aria-sort',up?'ascending':'descending');
const key=g=>{const v=g.rows[0].cells[i].dataset.v;return v===undefined?g.rows[0].cells[i].textContent:+v};
const order=(a,b)=>a<b?-1:a>b?1:0;
[...t.tBodies].sort((a,b)=>(up?1:-1)*order(key(a),key(b))).forEach(g=>t.append(g))})));
"""
