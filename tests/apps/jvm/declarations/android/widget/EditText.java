package android.widget;

public class EditText extends TextView {
    @Override
    public native android.text.Editable getText();
}
